"""Stage 2: one LoRA per concept. Read `train` first; its steps are `group`'s, its forward pass is `forward`'s.

`work` is all of a group of concepts, from its pictures to LoRAs that are kept in a folder. It may import
what `method` may.
"""
