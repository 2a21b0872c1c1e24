"""Rows in place of a data set that is not here: text of given lengths, where they are asked for."""

ROWS = 256
"""As many as a rehearsal needs, and few enough to be prepared at once."""
CHARACTERS_A_TOKEN = 4
"""As the tokenizers of hollow checkpoints have it (``hollow.py``), and about what others make of English text."""


def columns_of(lengths, names, rows=ROWS):
    """Text of ``lengths`` tokens in turn, in each of the columns."""
    texts = ["abcd" * (lengths[number % len(lengths)] * CHARACTERS_A_TOKEN // 4) for number in range(rows)]
    return {name: list(texts) for name in names}


def stand_in(datasets, plan):
    """From here on a data set that cannot be loaded is made, or it is said how."""
    real, asked = datasets.load_dataset, plan.get("rows")

    def load_dataset(path, *args, split=None, **kwargs):
        try:
            return real(path, *args, split=split, **kwargs)
        except Exception as error:
            if not asked:
                raise RuntimeError(
                    "the data set %s cannot be loaded here; --synthetic-rows 2048 rehearses with rows of so many tokens"
                    % path
                ) from error
        made = datasets.Dataset.from_dict(columns_of(asked["lengths"], asked["columns"]))
        return made if split is not None else datasets.DatasetDict(train=made, test=made)

    datasets.load_dataset = load_dataset
