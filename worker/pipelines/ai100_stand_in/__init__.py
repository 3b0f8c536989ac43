"""A stand-in for a Cloud AI 100 and its SDK, for tests and for `presswork up --pipeline ai100 --stand-in`.

It runs the ONNX graphs on ONNX Runtime in float32, keeps the declared table of times on a clock of its own, and says
what it is in the device's type, the SDK's version and each program. `install` writes a folder that has the SDK's
layout; the worker finds it by PRESSWORK_AI100_SDK and never imports this package. SURFACE.md lists what of the SDK it
has.
"""
