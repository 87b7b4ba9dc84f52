# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The paper's numbers, to stand beside ours. Its models are far larger."""

# Table 2, accuracy in percent: the tasks' columns are 2K, 4K, 8K and 16K tokens.
NEEDLE_LENGTHS = (2048, 4096, 8192, 16384)
NEEDLES = {
    "TTT": {
        "passkey": (98.4, 98.8, 98.0, 88.4),
        "number": (60.2, 36.6, 10.2, 4.4),
        "word": (78.8, 28.0, 4.4, 0.0),
    },
    "Mamba2": {
        "passkey": (98.6, 61.4, 31.0, 5.4),
        "number": (98.4, 55.8, 14.2, 0.0),
        "word": (42.2, 4.2, 0.0, 0.0),
    },
    "DeltaNet": {
        "passkey": (96.8, 98.8, 98.6, 71.4),
        "number": (47.2, 15.4, 12.8, 5.4),
        "word": (46.2, 20.0, 1.6, 0.0),
    },
    "Titans (LMM)": {
        "passkey": (99.8, 98.4, 98.2, 96.2),
        "number": (100.0, 99.8, 93.4, 80.2),
        "word": (90.4, 89.4, 85.8, 80.6),
    },
    "Titans (MAC)": {
        "passkey": (99.2, 98.8, 99.0, 98.4),
        "number": (99.6, 98.2, 97.6, 97.4),
        "word": (98.2, 98.2, 95.6, 95.2),
    },
    "Titans (MAG)": {
        "passkey": (99.4, 98.0, 97.4, 97.4),
        "number": (99.2, 98.8, 97.2, 98.6),
        "word": (98.0, 98.0, 90.2, 88.2),
    },
    "Titans (MAL)": {
        "passkey": (98.8, 98.6, 98.8, 97.8),
        "number": (99.8, 98.1, 96.8, 96.4),
        "word": (98.0, 97.4, 92.0, 90.4),
    },
}

# Figure 6, read from the plot: accuracy in percent over BABILong's tasks, at 1K,
# 2K, 4K, ... 128K tokens, 512K, 1M and 10M; a short row ends where the curve does.
BABI_LENGTHS = tuple(1000 * 2**i for i in range(8)) + (
    512_000,
    1_000_000,
    10_000_000,
)
BABI_FINE_TUNED = {
    "Titans (MAC)": (99, 99, 99, 98, 99, 99, 97, 98, 95, 94, 69),
    "Mamba": (99, 99, 99, 99, 99, 98, 96, 92),
    "RMT": (97, 95, 92, 90, 86, 78, 70, 59, 46, 43, 34),
    "GPT-4 (not fine-tuned)": (81, 77, 74, 71, 64, 53, 43, 36),
}
BABI_FEW_SHOT = {
    "Titans (MAC)": (76, 76, 74, 73, 71, 70, 66, 64, 61, 53),
    "GPT-4": (81, 77, 74, 71, 64, 53, 43, 36),
    "Llama3.1-8B": (68, 66, 66, 62, 60, 56, 49, 39),
    "RecurrentGemma-9B": (59, 57, 21, 14, 8),
    "RWKV-6-7B": (55, 48, 35, 7),
    "Mamba-2.8B": (52, 35, 9, 0),
}

# Table 3: MSE and MAE by data set, averages of the horizons 96, 192, 336 and 720.
FORECASTS = {
    "ETTm1": {
        "Titans (LMM)": (0.358, 0.387),
        "Simba": (0.383, 0.396),
        "iTransformer": (0.407, 0.410),
        "RLinear": (0.414, 0.407),
        "PatchTST": (0.387, 0.400),
        "Crossformer": (0.513, 0.496),
        "TiDE": (0.419, 0.419),
        "TimesNet": (0.400, 0.406),
        "DLinear": (0.403, 0.407),
    },
    "ETTm2": {
        "Titans (LMM)": (0.261, 0.309),
        "Simba": (0.271, 0.327),
        "iTransformer": (0.288, 0.332),
        "RLinear": (0.286, 0.327),
        "PatchTST": (0.281, 0.326),
        "Crossformer": (0.757, 0.610),
        "TiDE": (0.358, 0.404),
        "TimesNet": (0.291, 0.333),
        "DLinear": (0.350, 0.401),
    },
    "ETTh1": {
        "Titans (LMM)": (0.420, 0.421),
        "Simba": (0.441, 0.432),
        "iTransformer": (0.454, 0.447),
        "RLinear": (0.446, 0.434),
        "PatchTST": (0.469, 0.454),
        "Crossformer": (0.529, 0.522),
        "TiDE": (0.541, 0.507),
        "TimesNet": (0.458, 0.450),
        "DLinear": (0.456, 0.452),
    },
    "ETTh2": {
        "Titans (LMM)": (0.336, 0.382),
        "Simba": (0.361, 0.391),
        "iTransformer": (0.383, 0.407),
        "RLinear": (0.374, 0.398),
        "PatchTST": (0.387, 0.407),
        "Crossformer": (0.942, 0.684),
        "TiDE": (0.611, 0.550),
        "TimesNet": (0.414, 0.427),
        "DLinear": (0.559, 0.515),
    },
    "ECL": {
        "Titans (LMM)": (0.162, 0.261),
        "Simba": (0.169, 0.274),
        "iTransformer": (0.178, 0.270),
        "RLinear": (0.219, 0.298),
        "PatchTST": (0.205, 0.290),
        "Crossformer": (0.244, 0.334),
        "TiDE": (0.251, 0.344),
        "TimesNet": (0.192, 0.295),
        "DLinear": (0.212, 0.300),
    },
    "Traffic": {
        "Titans (LMM)": (0.415, 0.289),
        "Simba": (0.493, 0.291),
        "iTransformer": (0.428, 0.282),
        "RLinear": (0.626, 0.378),
        "PatchTST": (0.481, 0.304),
        "Crossformer": (0.550, 0.304),
        "TiDE": (0.760, 0.473),
        "TimesNet": (0.620, 0.336),
        "DLinear": (0.625, 0.383),
    },
    "Weather": {
        "Titans (LMM)": (0.231, 0.265),
        "Simba": (0.255, 0.280),
        "iTransformer": (0.258, 0.278),
        "RLinear": (0.272, 0.291),
        "PatchTST": (0.259, 0.281),
        "Crossformer": (0.259, 0.315),
        "TiDE": (0.271, 0.320),
        "TimesNet": (0.259, 0.287),
        "DLinear": (0.265, 0.317),
    },
}

# Table 4: top-1 accuracy in percent on GenomicBenchmarks, by its names.
GENOMICS = {
    "human_enhancers_cohn": {
        "Titans (LMM)": 75.2,
        "HyenaDNA": 74.2,
        "Transformer++": 73.4,
        "CNN": 69.5,
    },
    "human_enhancers_ensembl": {
        "Titans (LMM)": 89.6,
        "HyenaDNA": 89.2,
        "Transformer++": 89.5,
        "CNN": 68.9,
    },
    "human_ensembl_regulatory": {
        "Titans (LMM)": 89.3,
        "HyenaDNA": 93.8,
        "Transformer++": 89.9,
        "CNN": 93.3,
    },
    "human_nontata_promoters": {
        "Titans (LMM)": 96.6,
        "HyenaDNA": 96.6,
        "Transformer++": 94.4,
        "CNN": 84.6,
    },
    "human_ocr_ensembl": {
        "Titans (LMM)": 79.9,
        "HyenaDNA": 80.9,
        "Transformer++": 79.5,
        "CNN": 68.0,
    },
}

# Figure 9, read from the plot: thousand training tokens a second at 2K to 16K.
EFFICIENCY_LENGTHS = (2048, 4096, 8192, 16384)
EFFICIENCY = {
    "Transformer++": (49.8, 42.3, 34.9, 24.1),
    "Mamba2": (42.6, 42.3, 42.4, 42.3),
    "Gated DeltaNet": (41.0, 40.0, 39.8, 39.7),
    "Titans (MAL)": (40.8, 40.8, 40.6, 40.4),
    "Titans (MAG)": (36.2, 36.2, 36.1, 35.9),
    "Titans (MAC)": (36.1, 36.1, 36.0, 35.9),
    "Titans (LMM)": (35.3, 35.3, 35.2, 35.1),
    "Mamba": (34.5, 34.4, 34.6, 34.9),
}

# Table 5: perplexity, reasoning (average accuracy in percent), BABILong (percent).
ABLATIONS = {
    "LMM": (27.01, 47.83, 92.68),
    "+ attention (MAC)": (26.67, 48.65, 97.95),
    "+ attention (MAG)": (25.70, 48.60, 96.70),
    "+ attention (MAL)": (25.91, 47.87, 96.91),
    "linear memory": (28.49, 46.97, 85.34),
    "without convolution": (28.73, 45.82, 90.28),
    "without momentum": (28.98, 45.49, 87.12),
    "without weight decay": (29.04, 45.11, 85.60),
    "without persistent memory": (27.63, 46.35, 92.49),
}

# Figures 7 and 8, read from the plots, at 2K to 32K tokens by layers of the
# memory: perplexity of LMM with 170M, 360M and 760M parameters, and thousand
# training tokens a second.
DEPTH_LENGTHS = (2048, 4096, 8192, 16384, 32768)
DEPTH_PERPLEXITY = {
    "170M": {
        1: (16.02, 15.89, 15.83, 15.85, 16.10),
        2: (15.50, 15.37, 15.33, 15.40, 15.47),
        3: (15.30, 15.24, 15.19, 15.22, 15.29),
        4: (15.28, 15.27, 15.23, 15.25, 15.28),
    },
    "360M": {
        1: (13.19, 13.02, 12.70, 12.71, 12.75),
        2: (13.21, 12.85, 12.49, 12.48, 12.51),
        3: (13.21, 12.81, 12.35, 12.33, 12.41),
        4: (13.26, 12.80, 12.31, 12.29, 12.30),
    },
    "760M": {
        1: (10.52, 10.24, 10.04, 9.94, 9.95),
        2: (10.49, 10.15, 9.80, 9.66, 9.64),
        3: (10.50, 10.05, 9.74, 9.62, 9.60),
        4: (10.49, 10.02, 9.70, 9.63, 9.59),
    },
}
DEPTH_THROUGHPUT = {
    1: (44.3, 44.4, 44.3, 44.2, 44.1),
    2: (37.3, 37.4, 37.2, 36.7, 36.7),
    3: (29.8, 30.0, 29.8, 29.3, 29.2),
    4: (23.6, 23.7, 23.6, 23.4, 23.2),
}
