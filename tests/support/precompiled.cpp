// Compiled for its precompiled header only, which the test programs share: see tests/CMakeLists.txt.
