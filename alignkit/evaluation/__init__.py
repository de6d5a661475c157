"""Measures: retrieval, classification, geometry and calibration."""

from alignkit.evaluation.calibration import expected_calibration_error
from alignkit.evaluation.classify import class_embeddings, linear_probe, zero_shot
from alignkit.evaluation.evaluate import encode_pairs, evaluate_retrieval
from alignkit.evaluation.geometry import (
    alignment,
    cka,
    cka_debiased,
    effective_rank,
    modality_gap,
    mutual_knn,
    mutual_knn_grid,
    rice_k,
    uniformity,
)
from alignkit.evaluation.retrieval import ranks, retrieval

__all__ = [
    "alignment",
    "cka",
    "cka_debiased",
    "class_embeddings",
    "effective_rank",
    "encode_pairs",
    "evaluate_retrieval",
    "expected_calibration_error",
    "linear_probe",
    "modality_gap",
    "mutual_knn",
    "mutual_knn_grid",
    "ranks",
    "retrieval",
    "rice_k",
    "uniformity",
    "zero_shot",
]
