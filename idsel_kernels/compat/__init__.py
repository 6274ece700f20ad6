"""Functions with the signatures and return values of published pruners, so that one import replaces a slow loop.

| module | project | what it has |
|---|---|---|
| `divprune` | github.com/vbdi/divprune | `DivPrune` |
| `cdpruner` | github.com/Theia-4869/CDPruner | `encode_images`, `index_masks` |
| `scope` | github.com/kinredon/SCOPE | `SCOPE` |
| `visionzip` | github.com/dvlab-research/VisionZip | `CLIPVisionTower_VisionZip`, `zip_tokens` |
| `mmtok` | github.com/Ironieser/MMTok | `matrix` |
| `fastv` | github.com/pkunlp-icler/FastV | `keep_indexs` |
| `angelslim` | github.com/Tencent/AngelSlim | `divprune`, `idpruner`, `scope_pruning`, `visionzip`, `register` |

Each is imported by its name, as in `from idsel_kernels.compat.divprune import DivPrune`; `import idsel_kernels` imports
none of them. They import nothing of the projects; `angelslim` does so when it is called.

All compute in float32, whatever the dtype given, and give ties to the lowest index. So on float32 input they keep the
tokens that the published code keeps wherever no decision is near a tie. Where the published code would pick a token
twice, they pick distinct ones.
"""
