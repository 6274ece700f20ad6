// A function with a stack of its own, which can pause in the middle.
#pragma once

#include <memory>

namespace idsel::emulator {

class Fiber {
  public:
    using Body = void (*)(void*);

    Fiber();
    ~Fiber();
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;

    // From the beginning, at the next resume(). What was paused on this stack is forgotten.
    void start(Body body, void* argument);
    // Runs it until it pauses or ends.
    void resume();
    // Called on it: back to who resumed it.
    void pause();

  private:
    struct State;
    static void enter();
    std::unique_ptr<State> state_;
};

}  // namespace idsel::emulator
