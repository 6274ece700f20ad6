# The CUDA engine: for which architectures, with which sources and options.

# The compute capabilities of the GPUs of this machine, as numbers like 90.
function(idsel_seen_archs to)
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
    OUTPUT_VARIABLE seen ERROR_QUIET RESULT_VARIABLE failure)
  if(failure)
    set(seen "")
  endif()
  string(REGEX MATCHALL "[0-9]+\\.[0-9]+" seen "${seen}")
  set(${to} ${seen} PARENT_SCOPE)
endfunction()

set(archs ${IDSEL_CUDA_ARCHS})
string(REPLACE "," ";" archs "${archs}")
if(NOT archs)
  idsel_seen_archs(archs)
endif()
if(NOT archs)
  set(archs 80 90)
elseif(archs STREQUAL "all")
  set(for_all ON)
  set(archs 75 80 86 89 90 100 120)
endif()
list(TRANSFORM archs REPLACE "\\." "")
list(REMOVE_DUPLICATES archs)
list(SORT archs COMPARE NATURAL)
foreach(arch IN LISTS archs)
  if(NOT arch MATCHES "^[0-9]+$" OR arch LESS 75)
    message(FATAL_ERROR "IDSEL_CUDA_ARCHS: the CUDA engine needs compute capability 7.5 or later, got ${arch}")
  endif()
endforeach()
list(TRANSFORM archs APPEND "-real" OUTPUT_VARIABLE CMAKE_CUDA_ARCHITECTURES)
list(GET archs -1 newest)
# PTX of the newest, for GPUs that come later.
list(APPEND CMAKE_CUDA_ARCHITECTURES ${newest}-virtual)

set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
# Nothing of CUDA is needed to load the library, so that it also loads where there is none.
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)
find_package(CUDAToolkit 12 REQUIRED)
message(STATUS "idsel: CUDA ${CUDAToolkit_VERSION}, compute capabilities ${archs} and PTX of ${newest}")

set(idsel_cuda_sources csrc/cuda/launch.cu csrc/cuda/plan.cpp)
foreach(kernel gram_id_selection gram_mmr gram_max_min gram_hard_suppress gram_dpp gram_coverage gram_top_k
        gram_matrix_coverage panel)
  list(APPEND idsel_cuda_sources csrc/cuda/inst/${kernel}.cu)
endforeach()

# Which of two products is fused with a subtraction would otherwise differ from one inlined copy of a rule to another.
set(idsel_cuda_options -fmad=false --Werror all-warnings "SHELL:-Xcompiler -fvisibility=hidden")
# Smaller by four fifths, for what few GPUs need; before CUDA 13 it would also need a newer driver than CUDA does.
if(for_all AND CUDAToolkit_VERSION VERSION_GREATER_EQUAL 13)
  list(APPEND idsel_cuda_options --compress-mode=size)
endif()
if(IDSEL_CUDA_STRICT)
  list(APPEND idsel_cuda_options "SHELL:-Xptxas --warn-on-spills" "SHELL:-Xptxas --warning-as-error")
endif()
