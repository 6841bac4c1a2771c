// Runs the tests of the emulator and its driver: all, or those whose names are given.

#include "check.hpp"

#include <sys/wait.h>
#include <unistd.h>

namespace {

std::vector<check::Test>& tests() {
    static std::vector<check::Test> all;
    return all;
}

/// Runs a test in a child; what it says on stderr is shown only if it fails.
bool passes(const check::Test& test) {
    FILE* const said = tmpfile();
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        dup2(fileno(said), STDERR_FILENO);
        test.body();
        fflush(stdout);
        _exit(check::failures == 0 ? 0 : 1);
    }
    int status = 0;
    waitpid(child, &status, 0);
    if (status != 0) {
        printf("  FAILED %s%s\n", test.name, WIFSIGNALED(status) ? " (killed by a signal)" : "");
        rewind(said);
        char line[1024];
        while (fgets(line, sizeof line, said) != nullptr) {
            printf("    %s", line);
        }
    }
    fclose(said);
    return status == 0;
}

}  // namespace

check::Test::Test(const char* name, void (*body)()) : name(name), body(body) { tests().push_back(*this); }

int main(int count, char** names) {
    int run = 0, failed = 0;
    for (const check::Test& test : tests()) {
        bool wanted = count == 1;
        for (int i = 1; i < count; ++i) {
            wanted = wanted || strcmp(names[i], test.name) == 0;
        }
        if (wanted) {
            run += 1;
            failed += passes(test) ? 0 : 1;
        }
    }
    printf("%d checks, %d failed\n", run, failed);
    return run > 0 && failed == 0 ? 0 : 1;
}
