"""Measures: retrieval, classification, geometry, calibration, detection and
robustness."""

from alignkit.evaluation.calibration import expected_calibration_error
from alignkit.evaluation.classify import (
    best_probe,
    class_embeddings,
    knn_probe,
    linear_probe,
    zero_shot,
)
from alignkit.evaluation.clouds import chamfer
from alignkit.evaluation.clusters import k_means, mutual_information
from alignkit.evaluation.detection import auroc, fpr_at_95, maximum_concept_matching
from alignkit.evaluation.evaluate import encode_pairs, evaluate_retrieval
from alignkit.evaluation.findings import few_labelled, finding_f1, probe_auroc
from alignkit.evaluation.flips import flips, right_at
from alignkit.evaluation.fused import (
    answer_accuracy,
    answers_of,
    fill_in_accuracy,
    kind_accuracy,
    matched,
)
from alignkit.evaluation.geometry import (
    alignment,
    cka,
    cka_debiased,
    effective_rank,
    modality_gap,
    mutual_knn,
    mutual_knn_grid,
    outside_subspace,
    rice_k,
    uniformity,
)
from alignkit.evaluation.hubs import csls
from alignkit.evaluation.linear_maps import CanonicalMaps, cca, procrustes, ridge_map
from alignkit.evaluation.matching import LocalCka, assignment_accuracy, local_cka
from alignkit.evaluation.pixel_matches import (
    corner_error,
    error_auc,
    estimate_homography,
    match_accuracy,
    nearest_cells,
)
from alignkit.evaluation.power_law import PowerLaw, fit_log_linear, fit_power_law
from alignkit.evaluation.precision import average_precision, mean_average_precision
from alignkit.evaluation.retrieval import ranks, retrieval, retrieve
from alignkit.evaluation.robustness import (
    fgsm_attack,
    pgd_attack,
    robust_accuracy,
    shortfall,
    square_attack,
    worst_of,
)
from alignkit.evaluation.search import Found, search

__all__ = [
    "CanonicalMaps",
    "Found",
    "LocalCka",
    "PowerLaw",
    "alignment",
    "answer_accuracy",
    "answers_of",
    "assignment_accuracy",
    "auroc",
    "average_precision",
    "best_probe",
    "cca",
    "chamfer",
    "cka",
    "cka_debiased",
    "class_embeddings",
    "corner_error",
    "csls",
    "effective_rank",
    "encode_pairs",
    "error_auc",
    "estimate_homography",
    "evaluate_retrieval",
    "expected_calibration_error",
    "few_labelled",
    "fgsm_attack",
    "fill_in_accuracy",
    "finding_f1",
    "fit_log_linear",
    "fit_power_law",
    "flips",
    "fpr_at_95",
    "k_means",
    "kind_accuracy",
    "knn_probe",
    "linear_probe",
    "local_cka",
    "match_accuracy",
    "matched",
    "maximum_concept_matching",
    "mean_average_precision",
    "modality_gap",
    "mutual_information",
    "mutual_knn",
    "mutual_knn_grid",
    "nearest_cells",
    "outside_subspace",
    "pgd_attack",
    "probe_auroc",
    "procrustes",
    "ranks",
    "retrieval",
    "retrieve",
    "rice_k",
    "right_at",
    "ridge_map",
    "robust_accuracy",
    "search",
    "shortfall",
    "square_attack",
    "uniformity",
    "worst_of",
    "zero_shot",
]
