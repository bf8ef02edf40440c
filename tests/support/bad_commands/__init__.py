"""Bad input to the commands: what is typed, by what is wrong with it.

In a module's `CASES`, a title says what is wrong, and a text what is typed. Of a text, `{results}` and
`{out}` are folders that do not exist yet, `{tiny}` are the overrides that choose a model that is fine, and
`{bad}` is a folder of things that are not (see `places`).
"""
