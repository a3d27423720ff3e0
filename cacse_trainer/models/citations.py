"""What to cite for a training: BibTeX by method. Configs (`SentenceConfig.sources`) and trainers name theirs."""

from collections.abc import Iterable

CITATIONS = {
    "cacse": """@misc{cacse,
  title = {{CACSE}: Cross-Attention based Unsupervised Contrastive Learning for Sentence Embedding},
  howpublished = {\\url{https://github.com/Anonymous999-xxx/CACSE}},
  note = {Released without authors' names}
}""",
    "tncse": """@inproceedings{zong2025tncse,
  title = {{TNCSE}: Tensor's Norm Constraints for Unsupervised Contrastive Learning of Sentence Embeddings},
  author = {Zong, Tianyu and Shi, Bingkang and Yi, Hongzhu and Xu, Jungang},
  booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
  volume = {39},
  number = {24},
  pages = {26192--26201},
  year = {2025},
  doi = {10.1609/aaai.v39i24.34816}
}""",
    "simcse": """@inproceedings{gao2021simcse,
  title = {{SimCSE}: Simple Contrastive Learning of Sentence Embeddings},
  author = {Gao, Tianyu and Yao, Xingcheng and Chen, Danqi},
  booktitle = {Proceedings of the 2021 Conference on Empirical Methods in Natural Language Processing},
  pages = {6894--6910},
  year = {2021}
}""",
    "diffcse": """@inproceedings{chuang2022diffcse,
  title = {{DiffCSE}: Difference-based Contrastive Learning for Sentence Embeddings},
  author = {Chuang, Yung-Sung and Dangovski, Rumen and Luo, Hongyin and Zhang, Yang and Chang, Shiyu and
    Solja{\\v{c}}i{\\'c}, Marin and Li, Shang-Wen and Yih, Wen-tau and Kim, Yoon and Glass, James},
  booktitle = {Proceedings of the 2022 Conference of the North American Chapter of the Association for
    Computational Linguistics},
  year = {2022},
  note = {arXiv:2204.10298}
}""",
    "tsdae": """@inproceedings{wang2021tsdae,
  title = {{TSDAE}: Using Transformer-based Sequential Denoising Auto-Encoder for Unsupervised Sentence Embedding
    Learning},
  author = {Wang, Kexin and Reimers, Nils and Gurevych, Iryna},
  booktitle = {Findings of the Association for Computational Linguistics: EMNLP 2021},
  year = {2021},
  note = {arXiv:2104.06979}
}""",
    "rankcse": """@inproceedings{liu2023rankcse,
  title = {{RankCSE}: Unsupervised Sentence Representations Learning via Learning to Rank},
  author = {Liu, Jiduan and Liu, Jiahao and Wang, Qifan and Wang, Jingang and Wu, Wei and Xian, Yunsen and
    Zhao, Dongyan and Chen, Kai and Yan, Rui},
  booktitle = {Proceedings of the 61st Annual Meeting of the Association for Computational Linguistics},
  year = {2023},
  doi = {10.18653/v1/2023.acl-long.771}
}""",
    "distillcse": """@inproceedings{xu2023distillcse,
  title = {{DistillCSE}: Distilled Contrastive Learning for Sentence Embeddings},
  author = {Xu, Jiahao and Shao, Wei and Chen, Lihui and Liu, Lemao},
  booktitle = {Findings of the Association for Computational Linguistics: EMNLP 2023},
  pages = {8153--8165},
  year = {2023}
}""",
    "sts_cft": """@misc{ukarapol2024cft,
  title = {Improving Text Embeddings for Smaller Language Models Using Contrastive Fine-tuning},
  author = {Ukarapol, Trapoom and Lee, Zhicheng and Xin, Amy},
  year = {2024},
  note = {arXiv:2408.00690}
}""",
    "bellm": """@inproceedings{li2024bellm,
  title = {{BeLLM}: Backward Dependency Enhanced Large Language Model for Sentence Embeddings},
  author = {Li, Xianming and Li, Jing},
  booktitle = {Proceedings of the 2024 Conference of the North American Chapter of the Association for
    Computational Linguistics},
  year = {2024},
  note = {arXiv:2311.05296}
}""",
    "angle": """@inproceedings{li2024angle,
  title = {{AoE}: Angle-optimized Embeddings for Semantic Textual Similarity},
  author = {Li, Xianming and Li, Jing},
  booktitle = {Proceedings of the 62nd Annual Meeting of the Association for Computational Linguistics},
  year = {2024},
  note = {arXiv:2309.12871}
}""",
    "cosent": """@article{huang2024cosent,
  title = {{CoSENT}: Consistent Sentence Embedding via Similarity Ranking},
  author = {Huang, Xiang and Peng, Hao and Zou, Dongcheng and Liu, Zhiwei and Li, Jianxin and Liu, Kay and Wu, Jia and
    Su, Jianlin and Yu, Philip S.},
  journal = {IEEE/ACM Transactions on Audio, Speech, and Language Processing},
  year = {2024},
  doi = {10.1109/TASLP.2024.3402087}
}""",
    "matryoshka": """@inproceedings{kusupati2022matryoshka,
  title = {Matryoshka Representation Learning},
  author = {Kusupati, Aditya and Bhatt, Gantavya and Rege, Aniket and Wallingford, Matthew and Sinha, Aditya and
    Ramanujan, Vivek and Howard-Snyder, William and Chen, Kaifeng and Kakade, Sham and Jain, Prateek and Farhadi, Ali},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2022},
  note = {arXiv:2205.13147}
}""",
    "margin_mse": """@misc{hofstaetter2020marginmse,
  title = {Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge Distillation},
  author = {Hofst{\\"a}tter, Sebastian and Althammer, Sophia and Schr{\\"o}der, Michael and Sertkan, Mete and
    Hanbury, Allan},
  year = {2020},
  note = {arXiv:2010.02666}
}""",
    "gist": """@misc{solatorio2024gist,
  title = {{GISTEmbed}: Guided In-sample Selection of Training Negatives for Text Embedding Fine-tuning},
  author = {Solatorio, Aivin V.},
  year = {2024},
  note = {arXiv:2402.16829}
}""",
}
"""Entries by the names that objectives, configs and trainers give."""


def bibtex_of(sources: Iterable[str]) -> str:
    """The entries of some methods, each once, in their order; empty where there is none.

    Args:
        sources: names in `CITATIONS`, or, of a method from elsewhere, BibTeX itself.
    """
    return "\n\n".join(CITATIONS.get(name, name) for name in dict.fromkeys(sources))
