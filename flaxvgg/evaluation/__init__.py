"""How good scores and maps are: classification, localisation, and faithfulness to the network.

What runs the network is compiled; the rest is NumPy, in float64. Values are checked, so none of it
can be traced.
"""
