// nibble::compiled_io: the readers and writers of files that take long to compile. See compiled.cpp.
#define NIBBLE_COMPILED_IO_HERE
#include <nibble/io/checkpoint.hpp>
#include <nibble/io/gguf.hpp>
#include <nibble/io/imatrix.hpp>
#include <nibble/io/packed.hpp>
#include <nibble/io/safetensors_shards.hpp>
