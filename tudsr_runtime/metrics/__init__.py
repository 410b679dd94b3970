"""How good is a picture? Metrics that need nothing but numpy: no torch, no network, no weights to fetch.

Pictures are arrays (h, w) or (h, w, 1 to 4) of uint8, uint16 or floats in [0, 1] (`pixels`).

fidelity      PSNR-Y and SSIM-Y, against a reference
gmsd          gradient magnitude similarity deviation, against a reference
niqe          naturalness, of a picture alone
consistency   does the result, reduced again, give the input? are its colours the input's?
texture       gradient energy: how much is kept, on a grid of the decoder's patches, on tile borders
resize        MATLAB's imresize, which published figures rest on
"""
