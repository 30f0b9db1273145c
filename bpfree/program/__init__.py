"""A loss function as a program: traced once, marked with tags, and run in many ways.

`tags` is the mark itself, `trace` reads a loss function, `passes` runs it, and `blocks`
says what is differentiated between two nodes. Nothing in here draws noise.
"""
