"""A project that trains with normzoo: config files name these classes."""

from my_project.data import Data as Data
from my_project.net import Net as Net
from my_project.norm import MyNorm as MyNorm
from my_project.task import Task as Task
