#pragma once
#include <executorch/runtime/core/error.h>

// Put this runner's convolutions in the place of the runtime's; once, before a program is loaded.
executorch::runtime::Error register_convolutions();
