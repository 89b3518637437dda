"""``describe(model, input_shape) -> ModelSpec``: run one image through a model and write down what it did.

Modules in ``KINDS`` become one LayerSpec per call. Every other operation is seen as the tensors pass: products of
matrices and convolutions outside such modules are counted as layers of their own, known free operations are passed
over, and the rest is listed as uncounted. The model is left as it was found.
"""

from __future__ import annotations



