"""The models: which pipelines there are, where text enters them, how they draw, and what is known of the mini world.

`families` holds what is known of each kind of model; `pipelines` loads and describes them; `text` and `tokens` are what
cross-attention reads; `attention` traces it; `sample` draws and encodes pictures; `swap` writes weights and takes them
back; `mini` is the shipped world; `tiny` makes small random pipelines; `threads` says how PyTorch's threads wait,
`notices` what others need not say. Nothing here knows of concepts or of the method: it may import `errors`, `files` and
`templates`, nothing else of macelib.
"""
