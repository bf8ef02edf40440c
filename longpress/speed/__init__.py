"""How fast a sweep is: side by side with kvpress on the same rows, and against what the machine could do at best.

`make bench` measures and writes `results/speed/`.
"""
