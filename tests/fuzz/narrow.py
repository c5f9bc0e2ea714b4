"""Imported first, this gives every VGG a few channels in each block instead of 64 to 512.

A whole checkpoint is then some kilobytes, of which most bytes are worth damaging. Everything else
is as in earnest. Only for a process of its own.
"""

from flaxvgg.network import config

config._WIDTHS = (3, 4, 4, 5, 6)
