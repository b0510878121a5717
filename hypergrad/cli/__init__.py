"""The command line.

- `about`: The commands that tune nothing: verify, recommend, list and completion.
- `finished`: The commands that look at a study: replay, export, report and flatness.
- `lines`: Lines that the commands print, without the control characters that the files of a stranger may
  hold.
- `loading`: Import the user's task by the name given on the command line, and build it with its arguments.
- `main`: The command line.
- `options`: Options and commands as click takes them.
- `programs`: Compiled programs that the command line keeps on disk, so that the next run need not compile
  them again.
- `studies`: The commands that tune: tune, run and resume.
- `studyfile`: Study files: the options of `tune` in TOML, refused with the line, the key and the nearest
  valid name.
- `terminal`: Output of the commands: progress, tables, and one JSON object for machines.
"""
