"""`python -m demo.speech` makes whatever of the story is missing and measures the files."""

from demo.speech.story import run

if __name__ == "__main__":
    run()
