"""A study on disk: folder, journal, checkpoints and records.

- `checkpoint`: The state of a tuner on disk: any pytree of arrays and PRNG keys, to the bit, without
  pickle.
- `description`: The description of a study: `study.json`, written twice, so that one flipped bit does not
  end it.
- `folder`: The folder of a study: files that survive a crash and are safe to open, whoever wrote them.
- `journal`: An append-only journal of a study's steps: a line of JSON each, with a checksum, on disk before
  it counts.
- `machine`: The machine of a study: everything besides its inputs on which the bits of a run depend.
- `recorder`: Recorders of the steps of a run: in a study's folder, or nowhere.
- `records`: The record of a step, as JSON that reads back to the same bits.
"""
