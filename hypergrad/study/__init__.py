"""A study: a tuner run on disk, step by step.

- `callbacks`: Callbacks that follow a study as it runs: progress bars, logs, trackers.
- `disk/`: A study on disk: files, folder, journal, checkpoints and records.
- `export`: Tuned hyperparameters as a JSON file, and learned schedules read back from one.
- `loggers`: Logs for trackers.
- `resume`: Continue a study on disk, or repeat one of its trials: to the same bits.
- `run`: Run any tuner: budget, callbacks, failures; with a storage, every step is on disk before it counts.
"""

from hypergrad.study.callbacks import Callback, CallbackWarning, Ended, Listeners, Progress, jsonl
from hypergrad.study.disk.description import begin, has_begun, read_description
from hypergrad.study.disk.folder import StudyWarning
from hypergrad.study.export import load_schedule
from hypergrad.study.loggers import LOGS, log, tensorboard, wandb
from hypergrad.study.resume import Trial, replay_trial, resume_run
from hypergrad.study.run import OnStep, Run, run

__all__ = [
    "LOGS",
    "Callback",
    "CallbackWarning",
    "Ended",
    "Listeners",
    "OnStep",
    "Progress",
    "Run",
    "StudyWarning",
    "Trial",
    "begin",
    "has_begun",
    "jsonl",
    "load_schedule",
    "log",
    "read_description",
    "replay_trial",
    "resume_run",
    "run",
    "tensorboard",
    "wandb",
]
