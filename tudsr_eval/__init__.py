"""`tudsr eval`: how good are pictures, by figures and by eye, beside those of rivals?

matching      which reference and which input belong to a prediction
scores        the metrics by name, and those of one picture (the metrics themselves: tudsr_runtime.metrics)
run           all pictures of all methods
table, page   what people read: Markdown, and one HTML file
learned       DISTS, LPIPS, FID and KID, by weights that the user names
paper         the metrics of the paper, by pyiqa in an environment of the user's own
self_check    this evaluator against figures that someone else published
ablation      the paper's Tables 4 and 5 for a bundle
"""
