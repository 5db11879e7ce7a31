"""Networks that are equal though their layers differ: what is solved for before they are compared.

ReLU lets a positive factor through, so a network stays what it is when the channels of a layer are
reordered and scaled by positive factors and the next layer takes them so. Mean pooling, and a
squeeze-and-excitation that is changed with the channels, let both through as well. A sign does not
pass a ReLU, nor does an order pass between groups that the next layer keeps apart.
"""
