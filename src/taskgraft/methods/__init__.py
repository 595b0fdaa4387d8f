"""Methods against forgetting: one file each, what they declare about themselves, and how they are combined.

`protocol` says what a method is, `registry` lists them, `notation` reads and writes `ewc(strength=30) + distill`,
`compatibility` says which combinations are refused, `composition` makes one method of several, and `presets` names the
methods that the command line, the reports and the demo suggest. Importing this package, or `presets`, imports no torch.
"""
