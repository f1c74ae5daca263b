"""Perceptual metrics of rendered images: L-SNR (low level), D-SIM (mid level), I-CLIP (semantic). No host import.

`measure.Series` measures pictures against a reference, one at a time; `measure.measure` does it with a batch.
`backends.load_d_sim` and `encoders` hold what they measure with, `names` how that is called. Importing this package
imports nothing; a metric library is imported when its backend is first used.
"""
