"""How fast a sweep is: beside kvpress on the same rows, and against what the machine could do at best.

`longpress bench` measures and writes `results/speed/`.
"""
