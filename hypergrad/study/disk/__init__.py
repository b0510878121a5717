"""A study on disk: files, folder, journal, checkpoints and records.

- `checkpoint`: The state of a tuner on disk: any pytree of arrays and PRNG keys, to the bit, without
  pickle.
- `description`: What a study is: `study.json`, written twice, so that one flipped bit does not end it.
- `files`: Files that a crash cannot tear: writes that are whole or not there, and JSON from a stranger.
- `folder`: The folder of a study: files that survive a crash and are safe to open, whoever wrote them.
- `journal`: An append-only journal of a study's steps: one line of JSON each, with a checksum, on disk
  before it counts.
- `machine`: The machine that a study runs on: what the bits of a run depend on beside its inputs.
- `recorder`: Where the steps of a run are recorded: in a study's folder, or nowhere.
- `records`: What a study writes of a step, as JSON that reads back to the same bits.
"""
