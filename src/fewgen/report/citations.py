"""BibTeX of what a run actually used: its method and settings, its data set, its text encoder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

BIBTEX: dict[str, str] = {
    "fewgen": """@software{fewgen,
  title = {fewgen: learn an image generator from a few images per class},
  author = {{The fewgen authors}},
  version = {VERSION}
}""",
    "cada_vqvae": """@misc{cada_vqvae,
  title = {Few-Shot Image Generation Using Cross-Aligned and Vector Quantized VAE with Meta-Learning},
  howpublished = {Project report and code, https://github.com/newArsen/Few-shot-Image-generation}
}""",
    "cada_vae": """@inproceedings{schonfeld2019cadavae,
  title = {Generalized Zero- and Few-Shot Learning via Aligned Variational Autoencoders},
  author = {Sch{\\"o}nfeld, Edgar and Ebrahimi, Sayna and Sinha, Samarth and Darrell, Trevor
            and Akata, Zeynep},
  booktitle = {CVPR},
  year = {2019},
  eprint = {1812.01784},
  archivePrefix = {arXiv}
}""",
    "vq_vae": """@inproceedings{vandenoord2017vqvae,
  title = {Neural Discrete Representation Learning},
  author = {van den Oord, A{\\"a}ron and Vinyals, Oriol and Kavukcuoglu, Koray},
  booktitle = {NeurIPS},
  year = {2017},
  eprint = {1711.00937},
  archivePrefix = {arXiv}
}""",
    "vae": """@inproceedings{kingma2014vae,
  title = {Auto-Encoding Variational {Bayes}},
  author = {Kingma, Diederik P. and Welling, Max},
  booktitle = {ICLR},
  year = {2014},
  eprint = {1312.6114},
  archivePrefix = {arXiv}
}""",
    "mmd": """@article{gretton2012mmd,
  title = {A Kernel Two-Sample Test},
  author = {Gretton, Arthur and Borgwardt, Karsten M. and Rasch, Malte J. and Sch{\\"o}lkopf, Bernhard
            and Smola, Alexander},
  journal = {Journal of Machine Learning Research},
  volume = {13},
  pages = {723--773},
  year = {2012}
}""",
    "sq_gan": """@inproceedings{wang2025sqgan,
  title = {Style Quantization for Data-Efficient {GAN} Training},
  author = {Wang, Jian and Lan, Xin and Zhou, Jizhe and Tian, Yuxin and Lv, Jiancheng},
  booktitle = {CVPR},
  year = {2025},
  eprint = {2503.24282},
  archivePrefix = {arXiv}
}""",
    "stylegan2": """@inproceedings{karras2020stylegan2,
  title = {Analyzing and Improving the Image Quality of {StyleGAN}},
  author = {Karras, Tero and Laine, Samuli and Aittala, Miika and Hellsten, Janne and Lehtinen, Jaakko
            and Aila, Timo},
  booktitle = {CVPR},
  year = {2020},
  eprint = {1912.04958},
  archivePrefix = {arXiv}
}""",
    "r1": """@inproceedings{mescheder2018r1,
  title = {Which Training Methods for {GANs} do actually Converge?},
  author = {Mescheder, Lars and Geiger, Andreas and Nowozin, Sebastian},
  booktitle = {ICML},
  year = {2018},
  eprint = {1801.04406},
  archivePrefix = {arXiv}
}""",
    "ada": """@inproceedings{karras2020ada,
  title = {Training Generative Adversarial Networks with Limited Data},
  author = {Karras, Tero and Aittala, Miika and Hellsten, Janne and Laine, Samuli and Lehtinen, Jaakko
            and Aila, Timo},
  booktitle = {NeurIPS},
  year = {2020},
  eprint = {2006.06676},
  archivePrefix = {arXiv}
}""",
    "diffaugment": """@inproceedings{zhao2020diffaugment,
  title = {Differentiable Augmentation for Data-Efficient {GAN} Training},
  author = {Zhao, Shengyu and Liu, Zhijian and Lin, Ji and Zhu, Jun-Yan and Han, Song},
  booktitle = {NeurIPS},
  year = {2020},
  eprint = {2006.10738},
  archivePrefix = {arXiv}
}""",
    "cr_gan": """@inproceedings{zhang2020crgan,
  title = {Consistency Regularization for Generative Adversarial Networks},
  author = {Zhang, Han and Zhang, Zizhao and Odena, Augustus and Lee, Honglak},
  booktitle = {ICLR},
  year = {2020},
  eprint = {1910.12027},
  archivePrefix = {arXiv}
}""",
    "icr_gan": """@inproceedings{zhao2021icrgan,
  title = {Improved Consistency Regularization for {GANs}},
  author = {Zhao, Zhengli and Singh, Sameer and Lee, Honglak and Zhang, Zizhao and Odena, Augustus
            and Zhang, Han},
  booktitle = {AAAI},
  year = {2021},
  eprint = {2002.04724},
  archivePrefix = {arXiv}
}""",
    "uniformity": """@inproceedings{wang2020uniformity,
  title = {Understanding Contrastive Representation Learning through Alignment and Uniformity on the
           Hypersphere},
  author = {Wang, Tongzhou and Isola, Phillip},
  booktitle = {ICML},
  year = {2020},
  eprint = {2005.10242},
  archivePrefix = {arXiv}
}""",
    "sinkhorn": """@inproceedings{cuturi2013sinkhorn,
  title = {Sinkhorn Distances: Lightspeed Computation of Optimal Transport},
  author = {Cuturi, Marco},
  booktitle = {NeurIPS},
  year = {2013},
  eprint = {1306.0895},
  archivePrefix = {arXiv}
}""",
    "supcon": """@inproceedings{khosla2020supcon,
  title = {Supervised Contrastive Learning},
  author = {Khosla, Prannay and Teterwak, Piotr and Wang, Chen and Sarna, Aaron and Tian, Yonglong
            and Isola, Phillip and Maschinot, Aaron and Liu, Ce and Krishnan, Dilip},
  booktitle = {NeurIPS},
  year = {2020},
  eprint = {2004.11362},
  archivePrefix = {arXiv}
}""",
    "glove": """@inproceedings{pennington2014glove,
  title = {{GloVe}: Global Vectors for Word Representation},
  author = {Pennington, Jeffrey and Socher, Richard and Manning, Christopher D.},
  booktitle = {EMNLP},
  pages = {1532--1543},
  year = {2014}
}""",
    "minilm": """@inproceedings{reimers2019sentencebert,
  title = {Sentence-{BERT}: Sentence Embeddings using Siamese {BERT}-Networks},
  author = {Reimers, Nils and Gurevych, Iryna},
  booktitle = {EMNLP},
  year = {2019},
  eprint = {1908.10084},
  archivePrefix = {arXiv}
}

@inproceedings{wang2020minilm,
  title = {{MiniLM}: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained
           Transformers},
  author = {Wang, Wenhui and Wei, Furu and Dong, Li and Bao, Hangbo and Yang, Nan and Zhou, Ming},
  booktitle = {NeurIPS},
  year = {2020},
  eprint = {2002.10957},
  archivePrefix = {arXiv}
}""",
    "clip": """@inproceedings{radford2021clip,
  title = {Learning Transferable Visual Models From Natural Language Supervision},
  author = {Radford, Alec and Kim, Jong Wook and Hallacy, Chris and others},
  booktitle = {ICML},
  year = {2021},
  eprint = {2103.00020},
  archivePrefix = {arXiv}
}""",
    "digits": """@misc{alpaydin1998digits,
  title = {Optical Recognition of Handwritten Digits},
  author = {Alpaydin, Ethem and Kaynak, Cenk},
  howpublished = {UCI Machine Learning Repository},
  year = {1998},
  doi = {10.24432/C50P49}
}""",
    "mnist": """@article{lecun1998mnist,
  title = {Gradient-Based Learning Applied to Document Recognition},
  author = {LeCun, Yann and Bottou, L{\\'e}on and Bengio, Yoshua and Haffner, Patrick},
  journal = {Proceedings of the IEEE},
  volume = {86},
  number = {11},
  pages = {2278--2324},
  year = {1998}
}""",
    "fashion_mnist": """@misc{xiao2017fashionmnist,
  title = {{Fashion-MNIST}: a Novel Image Dataset for Benchmarking Machine Learning Algorithms},
  author = {Xiao, Han and Rasul, Kashif and Vollgraf, Roland},
  year = {2017},
  eprint = {1708.07747},
  archivePrefix = {arXiv}
}""",
    "cifar10": """@techreport{krizhevsky2009cifar,
  title = {Learning Multiple Layers of Features from Tiny Images},
  author = {Krizhevsky, Alex},
  institution = {University of Toronto},
  year = {2009}
}""",
    "omniglot": """@article{lake2015omniglot,
  title = {Human-level concept learning through probabilistic program induction},
  author = {Lake, Brenden M. and Salakhutdinov, Ruslan and Tenenbaum, Joshua B.},
  journal = {Science},
  volume = {350},
  number = {6266},
  pages = {1332--1338},
  year = {2015}
}""",
    "tiny_imagenet32": """@inproceedings{deng2009imagenet,
  title = {{ImageNet}: A Large-Scale Hierarchical Image Database},
  author = {Deng, Jia and Dong, Wei and Socher, Richard and Li, Li-Jia and Li, Kai and Fei-Fei, Li},
  booktitle = {CVPR},
  year = {2009}
}""",
    "ddpm": """@inproceedings{ho2020ddpm,
  title = {Denoising Diffusion Probabilistic Models},
  author = {Ho, Jonathan and Jain, Ajay and Abbeel, Pieter},
  booktitle = {NeurIPS},
  year = {2020},
  eprint = {2006.11239},
  archivePrefix = {arXiv}
}""",
    "ddim": """@inproceedings{song2021ddim,
  title = {Denoising Diffusion Implicit Models},
  author = {Song, Jiaming and Meng, Chenlin and Ermon, Stefano},
  booktitle = {ICLR},
  year = {2021},
  eprint = {2010.02502},
  archivePrefix = {arXiv}
}""",
    "guidance": """@misc{ho2022guidance,
  title = {Classifier-Free Diffusion Guidance},
  author = {Ho, Jonathan and Salimans, Tim},
  year = {2022},
  eprint = {2207.12598},
  archivePrefix = {arXiv}
}""",
    "latent_diffusion": """@inproceedings{rombach2022latent,
  title = {High-Resolution Image Synthesis with Latent Diffusion Models},
  author = {Rombach, Robin and Blattmann, Andreas and Lorenz, Dominik and Esser, Patrick
            and Ommer, Bj{\\"o}rn},
  booktitle = {CVPR},
  year = {2022},
  eprint = {2112.10752},
  archivePrefix = {arXiv}
}""",
    "tint": """@misc{landolsi_tint,
  title = {Tiny models from tiny data: Textual and null-text inversion for few-shot distillation},
  author = {Landolsi and Kahl},
  note = {Code: https://github.com/pixwse/tiny2}
}""",
    "textual_inversion": """@inproceedings{gal2023textual,
  title = {An Image is Worth One Word: Personalizing Text-to-Image Generation using Textual Inversion},
  author = {Gal, Rinon and Alaluf, Yuval and Atzmon, Yuval and Patashnik, Or and Bermano, Amit H.
            and Chechik, Gal and Cohen-Or, Daniel},
  booktitle = {ICLR},
  year = {2023},
  eprint = {2208.01618},
  archivePrefix = {arXiv}
}""",
    "null_text_inversion": """@inproceedings{mokady2023nulltext,
  title = {Null-text Inversion for Editing Real Images using Guided Diffusion Models},
  author = {Mokady, Ron and Hertz, Amir and Aberman, Kfir and Pritch, Yael and Cohen-Or, Daniel},
  booktitle = {CVPR},
  year = {2023},
  eprint = {2211.09794},
  archivePrefix = {arXiv}
}""",
}
"""Citation key -> BibTeX."""


def citation_keys(method: Any, config: Mapping[str, Any]) -> list[str]:
    """Return the keys of what a run used, in the order fewgen, method, text, data; unknown ones left out.

    Args:
        method: a loaded method; its `citations`, if it has any, name keys.
        config: the settings of the run (`config.yaml`).
    """
    text = getattr(method.spec, "text", None)
    used = [
        "fewgen",
        *getattr(method, "citations", ()),
        "" if text is None else text.encoder_name,
        str(config.get("data") or "").strip().lower().replace("-", "_"),
    ]
    return [key for key in dict.fromkeys(used) if key in BIBTEX]


def bibtex(keys: Iterable[str]) -> str:
    """Return the BibTeX entries of `keys`, ready to paste."""
    from fewgen.version import __version__

    return "\n\n".join(BIBTEX[key].replace("VERSION", __version__) for key in keys) + "\n"
