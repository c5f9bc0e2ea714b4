"""Weights from files as torchvision's names and arrays: `torch`, `keras`, `onnx`, and `flax`, ours.

Keras: `keras_file` opens .h5 and .keras, `keras_layers` and `keras_graph` say what the layers are,
`keras_weights` where their arrays lie, `keras_front` what stands before the first convolution. ONNX
has the same parts. `recognition` finds the VGG in a list of layers (`steps`), and `front` makes
preprocessing of what stands before it.
"""
