// Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
#include <torch/csrc/stable/library.h>

#include "registration.h"
#include "torch_binding.h"

STABLE_TORCH_LIBRARY_EXPAND(TORCH_EXTENSION_NAME, ops) {
  // host-known shapes: no copy from the device, and torch.compile sees them as symbols
  ops.def(
      "forward(Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, Tensor attention_weights) -> Tensor");
  ops.def(
      "backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, "
      "Tensor attention_weights, bool deterministic) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CPU, ops) {
  ops.impl("forward", TORCH_BOX(&forward_cpu));
  ops.impl("backward", TORCH_BOX(&backward_cpu));
}

#if defined(CUDA_KERNEL)
STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CUDA, ops) {
  ops.impl("forward", TORCH_BOX(&forward_cuda));
  ops.impl("backward", TORCH_BOX(&backward_cuda));
}
#endif

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
