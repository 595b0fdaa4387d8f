"""What holds a network to what it has learned, for training loops of one's own; any module, no bundle, no run folder.

`weights` has the penalties on weights (EWC, SI, MAS, L2SP), `distillation` the one on outputs (LwF), and `importance`
measures how much each parameter matters on the batches of a loader. The settings classes in `methods` describe the same
ideas to taskgraft's own loop.
"""
