// Runs kernels on the CPU: one fiber for each CUDA thread, a few blocks at a time in a shuffled order.
//
// Fibers change places at barriers, warp exchanges and atomic operations only, in an order drawn from a seed
// (IDSEL_EMULATOR_SEED, else the clock); IDSEL_EMULATOR_BLOCKS blocks, or clusters of them, at a time, else 3.
// IDSEL_EMULATOR_LATE may name a block that begins only when all others under way wait, or have ended. What CUDA leaves
// undefined fails the launch: threads of a block that wait for different things, or end while others wait;
// blocks under way that wait for those that are not. Shared memory has exactly its size and starts as garbage.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace idsel::emulator {

constexpr int kLanes = 32;

// --- For device code, called inside a fiber
// ---------------------------------------------------------------------------

int thread();
int64_t block();
int64_t blocks();
int threads();  // of a block
unsigned char* shared_memory();

// Barriers over the blocks of a cluster: a block is there once it has arrived at one.
void cluster_arrive();
void cluster_wait();
// The place in the shared memory of another block of the cluster.
void* shared_of(int rank, const void* mine);

// `line` tells barriers apart that different threads must not meet at.
void barrier(int line);

// Every lane of the warp gives `bytes` bytes, and gets those of all: kLanes times `bytes`, valid until its next
// exchange.
const void* exchange(const void* mine, size_t bytes, int line);

// Lets other threads and blocks go on.
void yield();
// The same, in a loop that waits for what other blocks do. When all blocks under way do nothing else, the launch fails.
void rest();

// --- For launchers
// ----------------------------------------------------------------------------------------------------

// Runs all blocks to their end, `cluster` of them together, or all of a cooperative launch. Null, or what went wrong.
const char* launch(const std::function<void()>& body, int64_t grid, int threads, int shared_bytes, int cluster = 1,
                   bool cooperative = false);

}  // namespace idsel::emulator
