"""The parts of the Cloud AI 100 pipeline: cards, placement, compiling and running of programs."""
