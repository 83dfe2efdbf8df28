"""The paper, one module per stage: `refine` (Eq. 1-2), `lora` (Eq. 3-5), `fuse` (Eq. 6-7).

Around them: `sums`, how the statistics are added up; `prior`, what has to stay as it is, by its `captions`; `images`
and `masks`, what stage 2 learns from. Beyond the paper, and off unless asked for: `rounds` (further rows of Eq. 2),
`influence` (which captions are held), `null_space` in `fuse`, `down` and `until` in `lora`. It may import `models` and
what says what is wanted (`concepts`, `config`, `templates`), what reads it (`reading`), `errors` and `files`; nothing
that is built on it: `job`, `erasure`, `evaluate`, `batch`, `show`, `lessons`.
"""
