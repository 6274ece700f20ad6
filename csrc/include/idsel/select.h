/* Greedy token selection: the public interface of the library, usable from C and C++.
 *
 * The caller owns every buffer. Nothing throws: a call returns a status, and idsel_last_error() has its words. */
#ifndef IDSEL_SELECT_H
#define IDSEL_SELECT_H

#include <stdint.h>

#if defined(_WIN32) || !defined(__GNUC__)
#define IDSEL_API
#else
#define IDSEL_API __attribute__((visibility("default")))
#endif

/* Changes whenever a struct, the meaning of an argument or what csrc/bindings offers does. */
#define IDSEL_ABI 12

/* What `counters` of a CUDA call has to hold. */
#define IDSEL_COUNTERS_BYTES 4112

/* The most bytes that the similarities of a sample take on a GPU, unless the caller says otherwise: N = 16384. Beyond
 * it a part of them is kept at a time. */
#define IDSEL_GRAM_BUDGET_BYTES 1073741824

#ifdef __cplusplus
extern "C" {
#endif

typedef enum idsel_status {
    IDSEL_OK = 0,
    IDSEL_INVALID = 1,       /* an argument breaks its contract */
    IDSEL_UNSUPPORTED = 2,   /* the library was built without what this needs */
    IDSEL_OUT_OF_MEMORY = 3, /* host memory */
    IDSEL_INTERNAL = 4,      /* a defect of the library */
    IDSEL_DEVICE_ERROR = 5   /* the CUDA runtime refused */
} idsel_status;

typedef enum idsel_device { IDSEL_CPU = 0, IDSEL_CUDA = 1 } idsel_device;

typedef enum idsel_dtype { IDSEL_FLOAT32 = 0, IDSEL_FLOAT16 = 1, IDSEL_BFLOAT16 = 2 } idsel_dtype;

/* Instruction sets of the CPU path. AUTO is the best that this machine has. */
typedef enum idsel_isa {
    IDSEL_ISA_AUTO = 0,
    IDSEL_ISA_PORTABLE = 1,
    IDSEL_ISA_AVX2 = 2,
    IDSEL_ISA_AVX512 = 3,
    IDSEL_ISA_NEON = 4
} idsel_isa;

/* How the CPU path found the picks of a sample. */
typedef enum idsel_path {
    IDSEL_PATH_LAZY = 0,      /* similarities on demand, when a token rises to the top */
    IDSEL_PATH_LAZY_ROWS = 1, /* lazy, then whole rows of the Gram, one per pick */
    IDSEL_PATH_LAZY_GRAM = 2, /* lazy, then the whole Gram */
    IDSEL_PATH_GRAM = 3       /* the whole Gram from the start */
} idsel_path;

/* Which loops the CPU path may use for rules that have several: it chooses (AUTO), or one is chosen for it, where that
 * can be. They find the same picks. */
typedef enum idsel_loop {
    IDSEL_LOOP_AUTO = 0,
    IDSEL_LOOP_LAZY = 1,
    IDSEL_LOOP_ROWS = 2,
    IDSEL_LOOP_GRAM = 3 /* rows of a Gram that is computed at once */
} idsel_loop;

/* What one sample took on the CPU path. */
typedef struct idsel_stats {
    int64_t similarities; /* dot products of two different tokens, those of a Gram included */
    int64_t norms;        /* dot products of a token with itself */
    int64_t lazy_picks;   /* picks made before the change to a dense path, if there was one */
    int32_t path;         /* idsel_path */
    int32_t isa;          /* idsel_isa */
} idsel_stats;

/* One call. Strides are in elements. Tensors live on `device`, `k` and `params` on the host. */
typedef struct idsel_args {
    uint32_t abi;   /* IDSEL_ABI of the caller */
    int32_t device; /* idsel_device */
    int32_t dtype;  /* idsel_dtype of the features */
    int32_t rule;   /* an id from idsel_rule() */

    const void* features; /* (B, N, D), or (T, D) with cu_seqlens */
    int64_t batch;        /* B */
    int64_t tokens;       /* N, or T with cu_seqlens */
    int64_t dim;          /* D */
    int64_t features_batch_stride;
    int64_t features_token_stride;
    int64_t features_dim_stride; /* has to be 1 */

    /* Nonzero: `features` are the similarities of the tokens instead, (B, N, N) in float32, with dim = N: c_ij in
     * row i, taken as symmetric and clamped to [-1, 1], a NaN as -1. The diagonal says what a token is, as the squares
     * of norms would: not finite, it does not take part; not positive, it has no direction. Not with cu_seqlens, nor
     * for rules that compare no tokens but read channels. */
    int32_t features_are_similarities;

    const float* importance; /* (B, N) or (T,); NULL: 1 everywhere */
    int64_t importance_batch_stride;
    int64_t importance_token_stride;

    const uint8_t* mask; /* (B, N) or (T,), 0 = not selectable; NULL: all selectable */
    int64_t mask_batch_stride;
    int64_t mask_token_stride;

    const int32_t* cu_seqlens; /* (B + 1,), or NULL for a dense batch */

    /* (B, 2): height and width of the grid on which the tokens of a sample lie, row by row, in place of the rule's own;
     * NULL: that one. For HardSuppress; other rules have none. Nobody checks values: a width <= 0 is no grid. */
    const int32_t* grids;

    /* (B, given_count): tokens of each sample that are its first picks, in this order; NULL: none. One that is not
     * there (negative, beyond the sample, masked), does not take part or comes again is passed over. Not for rules
     * whose state is "all". */
    const int32_t* given;
    int64_t given_count;

    const int64_t* k; /* (k_count,) */
    int64_t k_count;  /* 1 for all samples alike, or B */
    int64_t k_max;    /* width of the outputs, >= every k */

    /* CUDA: (B,) on the device, in place of `k`; NULL: `k` counts. Nobody checks its values: below 0 is 0, above k_max
     * is k_max. */
    const int32_t* k_on_device;

    const double* params; /* (param_count,), in the order idsel_rule() gives */
    int64_t param_count;

    int64_t* indices; /* (B, k_max) contiguous, padded with -1 */
    float* scores;    /* (B, k_max) contiguous, padded with -inf */
    int32_t sort;     /* nonzero: ascending indices */

    int32_t threads; /* CPU: most threads to use, >= 1 */
    int32_t isa;     /* CPU: idsel_isa */
    int32_t loop;    /* CPU: idsel_loop */

    void* workspace; /* (workspace_bytes,) on the device, of at least idsel_workspace_bytes() */
    int64_t workspace_bytes;
    void* counters; /* CUDA: (IDSEL_COUNTERS_BYTES,), aligned to 8, one per stream: zeros, and again after each call */
    void* stream;   /* CUDA: cudaStream_t of the current device */

    /* The most bytes that the similarities of a sample (of a ragged batch on CUDA: of all its tokens) may take. Beyond
     * it only a part of them is kept at a time. 0: as many as pay, and at most 1 GiB, on the CPU all in 256 MiB or a
     * part of them in 64 MiB; CUDA uses at most 16 GiB.
     * `Elimination` on the CPU keeps all whatever it says. */
    int64_t gram_budget;

    idsel_stats* stats; /* CPU: (B,), or NULL */

    /* CUDA: (B,) on the device, or NULL. How many similarities the picks of a sample have read of a Gram
     * that is kept is added there. */
    uint64_t* similarities_read;

    /* CUDA: (B, 2) on the device, or NULL. How many rounds of offers of tokens with a priority a sample took that was
     * worked on in panels, and how many panels, is added there. */
    uint64_t* panels_made;
} idsel_args;

/* Which dot products a CUDA call keeps. */
typedef enum idsel_algorithm {
    /* Of each token with itself: the rule needs no others. */
    IDSEL_NORMS = 0,
    /* All of a sample. */
    IDSEL_GRAM = 1,
    /* Of `panel_rows` tokens at a time with all; of samples of a ragged batch that are short enough, all. */
    IDSEL_PANELS = 2
} idsel_algorithm;

/* How a CUDA call would be done. */
typedef struct idsel_plan {
    int32_t algorithm;  /* idsel_algorithm */
    int32_t panel_rows; /* of panels */
    int64_t launches;
    int64_t workspace_bytes;
    int64_t least_panels; /* of a sample without given tokens, by its picks. Fewer where they change nothing */
    int64_t most_panels;
    /* For the dot products of all samples. 0 for a ragged batch, whose lengths are on the device, and where there are
     * none, since similarities are given. */
    double least_flops;
    double most_flops;
} idsel_plan;

/* A rule as the library knows it: one row of its table. */
typedef struct idsel_rule_info {
    int32_t id;
    int32_t param_count;
    const char* name;
    const char* const* param_names; /* (param_count,) */
    const char* state;              /* what its loop carries: "token", "history" or "coverage" */
    int32_t needs_similarities; /* 0: no pick changes a priority, so that no dot products of two tokens are needed */
} idsel_rule_info;

/* Selects. On the CPU it returns when done, and allocates what it turns out to need; else it only enqueues. */
IDSEL_API idsel_status idsel_select(const idsel_args* args);

/* Device memory that `args` needs as workspace, or -1 for invalid arguments. 0 on the CPU. */
IDSEL_API int64_t idsel_workspace_bytes(const idsel_args* args);

/* Fills in `plan` from the sizes and rule of a CUDA call; fails where it cannot run. */
IDSEL_API idsel_status idsel_cuda_plan(const idsel_args* args, idsel_plan* plan);

/* Whether this library has code for a CUDA device, and the device is there; idsel_last_error() says why not. -1 asks
 * only whether it has CUDA code. */
IDSEL_API idsel_status idsel_cuda_status(int32_t device);

/* Why the last failing call on this thread failed. Valid until the next failing call on it. */
IDSEL_API const char* idsel_last_error(void);

IDSEL_API uint32_t idsel_abi(void);

/* Row `position` of the rule table, or NULL past its end. */
IDSEL_API const idsel_rule_info* idsel_rule(int32_t position);

/* The instruction set that `isa` stands for on this machine, or -1 where it cannot run here. */
IDSEL_API int32_t idsel_resolve_isa(int32_t isa);

#ifdef __cplusplus
} /* extern "C" */

namespace idsel {
using Args = idsel_args;
using Stats = idsel_stats;
using Status = idsel_status;
inline Status select(const Args& args) { return idsel_select(&args); }
inline int64_t workspace_bytes(const Args& args) { return idsel_workspace_bytes(&args); }
inline const char* last_error() { return idsel_last_error(); }
}  // namespace idsel
#endif

#endif /* IDSEL_SELECT_H */
