"""The parts of `speech_recognition.py`."""
