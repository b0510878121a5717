"""Reports: the study that a user holds, its results read back, its figures and its page.

- `contents`: Content of the page of a report, as plain data for its template.
- `diagrams`: Figures of some studies: an architecture, and slices through a landscape.
- `examples`: The training examples that raise and lower a value most, as pictures or as rows.
- `extras`: What a task adds to its report: test scores, a code snippet, a diagram of its architecture,
  notes.
- `figures`: The figures of a study, from plain arrays.
- `leaves`: The tuned hyperparameters by the way in which a report shows them.
- `notes`: Tables that a task adds for people, such as how the columns of its file were read.
- `page`: Write the report of a finished study: one HTML page that works offline, and its figures.
- `results`: Read a finished study from its folder, and check every type and shape on the way.
- `sentences`: What a report says about a study: how numbers are written, and the sentences made from them.
- `study`: The study that a user holds: what was found, its trials as a table, its schedules, its report.
- `style`: The style of all figures: colours, axes, and the same bytes each time.
- `text`: Numbers and names as a report writes them: short, on one line, without control characters.
- `trials`: The trials of a study as a table: one row per trial, whatever the method.
"""
