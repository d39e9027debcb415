/* The first process of a virtual machine: runs the programs named in /list, one after the other, tells how each
 * ended, and turns the machine off. A line of the list is either "env", a tab, and NAME=VALUE; or "run" and the
 * words of a command, with a tab before each. A program is removed once it ended, since its file takes memory. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_WORDS = 256 };

static void mount_at(const char *path, const char *type) {
    mkdir(path, 0755);
    if (mount(type, path, type, 0, NULL) != 0) perror(path);
}

static int run(char **words) {
    int status = 0;
    pid_t child = fork();
    if (child == 0) {
        execv(words[0], words);
        perror(words[0]);
        _exit(127);
    }
    waitpid(child, &status, 0);
    unlink(words[0]);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int main(void) {
    mount_at("/proc", "proc");
    mount_at("/sys", "sysfs");
    mount_at("/tmp", "tmpfs");
    mount_at("/dev", "devtmpfs");
    mount_at("/dev/shm", "tmpfs");
    chmod("/tmp", 01777);
    chmod("/dev/shm", 01777);
    setenv("HOME", "/tmp", 1);
    if (chdir("/tmp") != 0) perror("/tmp");
    puts("\n@@ start");
    fflush(stdout);

    FILE *list = fopen("/list", "r");
    static char line[1 << 16];
    int failed = list == NULL;
    while (list != NULL && fgets(line, sizeof line, list) != NULL) {
        char *words[MAX_WORDS];
        int count = 0;
        for (char *word = strtok(line, "\t\n"); word != NULL && count < MAX_WORDS - 1; word = strtok(NULL, "\t\n"))
            words[count++] = word;
        words[count] = NULL;
        if (count == 2 && strcmp(words[0], "env") == 0) {
            putenv(strdup(words[1]));
        } else if (count >= 2 && strcmp(words[0], "run") == 0) {
            int code = run(words + 1);
            printf("\n@@ %s ended with %d\n", words[1], code);
            fflush(stdout);
            failed |= code != 0;
        }
    }
    printf("@@ end %d\n", failed);
    fflush(stdout);
    sync();
    reboot(RB_POWER_OFF);
    for (;;) pause();
}
