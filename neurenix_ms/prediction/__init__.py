"""Run models on files and write the results to files, with resumption after an interruption."""

from neurenix_ms.prediction.forecasts import forecast_file
from neurenix_ms.prediction.points import evaluate_file
from neurenix_ms.prediction.predicting import Prediction, predict_file

__all__ = ["Prediction", "evaluate_file", "forecast_file", "predict_file"]
