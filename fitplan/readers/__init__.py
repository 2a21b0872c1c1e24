"""Files of other tools, read as questions: what is trained, with which settings, and what of it is not known here.

A file is data: YAML is loaded without tags, JSON as it is, and nothing of it is imported, run or fetched. It is
recognised by what it holds, never by its name.
"""

from fitplan.readers.command_line import read_command_line as read_command_line
from fitplan.readers.objects import read_training_objects as read_training_objects
from fitplan.readers.reading import Reading as Reading
from fitplan.readers.recognise import read_training_file as read_training_file
