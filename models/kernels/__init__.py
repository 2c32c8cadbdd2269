"""Attention operators, each a folder with a plain reference (`naive.py`) and a Triton version (`fused.py`).

* `sparse_attention`: attention over chunks chosen for each block of queries, forward and backward.
* `latent_decode`: one softmax over ring, latents and chosen chunks, for one or a few new queries.
* `landmark_topk`: the best landmarks for each query, without ever writing all scores.

Every operator takes `implementation="auto" | "naive" | "fused"`: `auto` is the Triton version on a CUDA device
and the reference elsewhere. Triton itself is imported only when a fused version runs.
"""
