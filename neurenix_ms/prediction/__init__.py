"""Predictions from files to files, which resume after an interruption."""

from neurenix_ms.prediction.predicting import Prediction, predict_file

__all__ = ["Prediction", "predict_file"]
