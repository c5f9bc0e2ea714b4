"""How good scores and maps are, by the published evaluations.

What runs the network is compiled; the rest is NumPy, in float64. Values are checked, so none of it
can be traced.
"""
