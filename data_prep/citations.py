"""The papers that data sets made here name as their source (BibTeX)."""

VLAA_THINKING = """@article{chen2025sft,
  title={SFT or RL? An Early Investigation into Training R1-Like Reasoning Large Vision-Language Models},
  author={Chen, Hardy and Tu, Haoqin and Wang, Fali and Liu, Hui and Tang, Xianfeng and Du, Xinya and Zhou, Yuyin and
    Xie, Cihang},
  journal={arXiv preprint arXiv:2504.11468},
  year={2025}
}"""
VILBENCH = """@article{tu2025vilbench,
  title={ViLBench: A Suite for Vision-Language Process Reward Modeling},
  author={Tu, Haoqin and Feng, Weitao and Chen, Hardy and Liu, Hui and Tang, Xianfeng and Xie, Cihang},
  journal={arXiv preprint arXiv:2503.20271},
  year={2025}
}"""
