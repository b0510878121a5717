"""The front door: tune a task, judge the result, resume and replay.

- `build`: Build the tuner that settings ask for, and refuse settings that cannot work.
- `certificates`: What the certificates of a study's hypergradients say, in sentences for its report.
- `data`: The data that a task reads: their digests, so that a study goes on with the same.
- `flatness`: Measure how flat the networks of a finished study are, with a slice through the loss of each.
- `finalists`: Finalists: the candidates of a study, trained again on equal seeds, and the best of them.
- `judge`: Judge configurations on fresh seeds: curves, validation objectives and test scores with
  intervals.
- `pool`: Random search as a pool of trials: what the best of as many is worth in expectation, over its luck.
- `provenance`: The origin of a study: its task, files, settings and digests.
- `replay`: Train one trial of a study again and show where it went wrong.
- `resume`: Continue a study of a task.
- `scout`: The scout: a search from whose best trials a descent starts; it holds long schedules constant.
- `settings`: The settings of tuning, and the options by which the command line and study files give them.
- `tune`: The front door: tune a task, compare it with its baselines, leave a report.
- `warm_start`: Starts of a study: the trials of another study, and the user's prior.
"""
