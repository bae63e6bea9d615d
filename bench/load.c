/* The load generator: many POP3 clients in one process.  The clients check every octet that they
   get.

   usage: load SCRIPT

   A line of the script has one setting or one step.  Its words are separated by tabs.  The settings
   come first:

     port N           the port of the server on 127.0.0.1
     tls no|full|resume
     slots N          the number of clients at the same time; each runs one session after the other
     users NAME N     in its turn t, slot s is the user NAME followed by (s + t * slots) mod N;
                      with N = 0 it is always the user NAME
     sessions N       the number of all sessions; the first session of each slot always runs
     ramp N           only N slots begin at once; whenever a client comes to a barrier, one more
                      slot begins
     limit SECONDS    after this time no more sessions and RETRs begin, and "again" no longer goes
                      back; the time begins again at each barrier
     pack PATH        the messages that RETR must send; see wire.h

   The steps of a session, after the greeting, follow:

     say PREFIX LINE  send LINE (%u is the user); the reply must be one line and begin with PREFIX
     list N LINE      send LINE; the reply must begin with +OK and have N lines
     retr FIRST N AHEAD   send RETR for the messages FIRST to FIRST + N - 1, up to AHEAD of them
                      before their replies; when half of these have come, send more in one write
     barrier          wait until all clients have come to this step, and make a mark
     again N TIMES    go back N steps, TIMES times
     quit             send QUIT; the reply must be +OK, and the server must close the connection

   Marks are made before the first session, at each barrier and at the end.  At a mark the program
   prints "mark WALL CPU OCTETS MESSAGES SESSIONS RESUMED AGAINS", and goes on when it reads a line.
   The numbers count from the moment at which it went on after the previous mark: the nanoseconds,
   the program's own processor time in microseconds, the octets and the messages that RETR has sent,
   the sessions that have begun, the TLS sessions that were resumed, and the times that "again" went
   back.  After an error the program ends with status 1 and a line "wrong bytes ...", "refused ..."
   or "lost ...". */

#define _GNU_SOURCE
#include "wire.h"
#include <sys/resource.h>
#include <time.h>

enum kind { SAY, LIST, RETR, BARRIER, REPEAT, QUIT };

struct step {
    enum kind kind;
    char prefix[64], line[256];
    long first, count, ahead;
};

struct client {
    struct link link;
    long turn;
    char user[128];
    int step;
    int isBegun, isGreeted, isDone, isWaiting, hasQuit;
    long asked, answered;       /* RETRs of this step */
    long againsLeft[64];        /* for each step; -1 before its first "again" */
    char line[1024];            /* the beginning of a line that is not complete */
    size_t lineLength;
    int isInBody, isAtLineStart, isDotLine;
    long bodyLines;
    const char *want, *wantEnd; /* the octets that RETR must still send */
    char *out;                  /* octets that the socket has not accepted yet */
    size_t outLength, outSize;
    SSL_SESSION *session;
};

static struct step steps[64];
static int stepCount;
static struct client *clients;
static int slots = 1, ramp, started, port, isTLS, mayResume;
static long userCount, sessions = 1, begun;
static char userName[64];
static double limitSeconds = 1e9;
static struct pack pack;
static SSL_CTX *context;
static int poller;
static int live, waiting;
static long octets, messages, sessionsBegun, resumed, agains;
static double goTime, goCPU, startTime;
static char buffer[1 << 18];

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static double cpu(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec +
           (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static void die(struct client *client, const char *what, const char *text, size_t length) {
    while (length && (text[length - 1] == '\r' || text[length - 1] == '\n'))
        length--;
    printf("%s user %s, step %d (%s%s): %.*s\n", what, client->user, client->step,
           client->isGreeted ? "" : "greeting of ",
           steps[client->step].kind == RETR ? "RETR" : steps[client->step].line,
           (int)(length > 200 ? 200 : length), text);
    exit(1);
}

static void mark(void) {
    char line[16];
    printf("mark %.0f %.0f %ld %ld %ld %ld %ld\n", (now() - goTime) * 1e9, (cpu() - goCPU) * 1e6,
           octets, messages, sessionsBegun, resumed, agains);
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin))
        exit(2);
    octets = messages = sessionsBegun = resumed = agains = 0;
    goTime = now();
    goCPU = cpu();
}

static void watch(struct client *client, int how, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = client};
    epoll_ctl(poller, how, client->link.fd, &event);
}

static int newSession(SSL *ssl, SSL_SESSION *session) {
    struct client *client = SSL_get_app_data(ssl);
    SSL_SESSION_free(client->session);
    client->session = session;
    return 1;
}

static void begin(struct client *client) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    begun++;
    sessionsBegun++;
    if (userCount)
        snprintf(client->user, sizeof client->user, "%s%ld", userName,
                 (client - clients + client->turn * slots) % userCount);
    else
        snprintf(client->user, sizeof client->user, "%s", userName);
    client->turn++;
    client->step = 0;
    client->isBegun = client->isGreeted = client->isInBody = client->hasQuit = 0;
    client->asked = client->answered = 0;
    client->lineLength = client->outLength = 0;
    memset(client->againsLeft, -1, sizeof client->againsLeft);
    nonBlocking(fd);
    client->link.fd = fd;
    client->link.ssl = NULL;
    if (isTLS) {
        SSL *ssl = client->link.ssl = SSL_new(context);
        SSL_set_app_data(ssl, client);
        SSL_set_fd(ssl, fd);
        SSL_set_connect_state(ssl);
        if (mayResume && client->session)
            SSL_set_session(ssl, client->session);
    }
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0 && errno != EINPROGRESS)
        die(client, "lost", strerror(errno), strlen(strerror(errno)));
    watch(client, EPOLL_CTL_ADD, EPOLLIN | EPOLLOUT);
}

static void flushOut(struct client *client) {
    size_t done = 0;
    while (done < client->outLength) {
        ssize_t sent = linkWrite(&client->link, client->out + done, client->outLength - done);
        if (sent == AGAIN)
            break;
        if (sent < 0)
            die(client, "lost", "cannot write", 12);
        done += sent;
    }
    memmove(client->out, client->out + done, client->outLength - done);
    client->outLength -= done;
    watch(client, EPOLL_CTL_MOD, client->outLength ? EPOLLIN | EPOLLOUT : EPOLLIN);
}

static void put(struct client *client, const char *text) {
    size_t length = strlen(text);
    if (client->outLength + length > client->outSize) {
        client->outSize = (client->outLength + length) * 2;
        client->out = realloc(client->out, client->outSize);
    }
    memcpy(client->out + client->outLength, text, length);
    client->outLength += length;
}

/* Send the command of the step.  For RETR, keep up to "ahead" commands under way. */
static void ask(struct client *client) {
    struct step *step = &steps[client->step];
    char line[512];
    if (step->kind == RETR) {
        if (client->asked - client->answered > step->ahead / 2)
            return;
        while (client->asked < step->count && client->asked - client->answered < step->ahead) {
            snprintf(line, sizeof line, "RETR %ld\r\n", step->first + client->asked++);
            put(client, line);
        }
    } else {
        const char *user = strstr(step->line, "%u");
        if (user)
            snprintf(line, sizeof line, "%.*s%s%s\r\n", (int)(user - step->line), step->line,
                     client->user, user + 2);
        else
            snprintf(line, sizeof line, "%s\r\n", step->line);
        put(client, line);
    }
    flushOut(client);
}

static int isOver(void) { return now() - startTime > limitSeconds; }

/* Go to the next step that sends a command, or to a barrier. */
static void goOn(struct client *client) {
    for (;;) {
        struct step *step = &steps[client->step];
        if (step->kind == BARRIER) {
            client->isWaiting = 1;
            waiting++;
            if (started < slots)
                begin(&clients[started++]);
            return;
        }
        if (step->kind != REPEAT)
            break;
        long *left = &client->againsLeft[client->step];
        if (*left < 0)
            *left = step->count;
        if (*left > 0 && !isOver()) {
            (*left)--;
            agains++;
            client->step -= step->first;
        } else {
            *left = -1;
            client->step++;
        }
    }
    client->asked = client->answered = 0;
    ask(client);
}

static void nextStep(struct client *client) {
    client->step++;
    goOn(client);
}

static void end(struct client *client) {
    if (client->link.ssl && SSL_session_reused(client->link.ssl))
        resumed++;
    linkClose(&client->link);
    if (begun < sessions && !isOver()) {
        begin(client);
    } else {
        client->isDone = 1;
        live--;
    }
}

/* Handle a status line, which includes its line end. */
static void gotStatus(struct client *client, const char *line, size_t length) {
    struct step *step = &steps[client->step];
    const char *prefix = client->isGreeted && step->kind == SAY ? step->prefix : "+OK";
    if (strncmp(line, prefix, strlen(prefix)))
        die(client, strncmp(line, "+OK", 3) ? "refused" : "wrong bytes", line, length);
    if (!client->isGreeted) {
        client->isGreeted = 1;
        goOn(client);
    } else if (step->kind == SAY) {
        nextStep(client);
    } else if (step->kind == QUIT) {
        if (client->hasQuit)
            die(client, "wrong bytes", line, length);
        client->hasQuit = 1;
    } else if (step->kind == LIST) {
        client->isInBody = client->isAtLineStart = 1;
        client->bodyLines = 0;
    } else if (step->kind == RETR) {
        size_t number = step->first + client->answered - 1;
        if (number >= pack.count || client->answered >= client->asked)
            die(client, "wrong bytes", line, length);
        client->isInBody = 1;
        client->want = pack.data + pack.at[number];
        client->wantEnd = pack.data + pack.at[number + 1];
    }
}

static size_t gotBody(struct client *client, const char *data, size_t length) {
    size_t take = client->wantEnd - client->want;
    if (take > length)
        take = length;
    if (memcmp(client->want, data, take)) {
        size_t place = 0;
        while (client->want[place] == data[place])
            place++;
        char text[128];
        struct step *step = &steps[client->step];
        const char *from = pack.data + pack.at[step->first + client->answered - 1];
        snprintf(text, sizeof text, "message %ld differs at octet %zu",
                 step->first + client->answered, (size_t)(client->want - from) + place);
        die(client, "wrong bytes", text, strlen(text));
    }
    client->want += take;
    octets += take;
    if (client->want == client->wantEnd) {
        struct step *step = &steps[client->step];
        client->isInBody = 0;
        client->answered++;
        messages++;
        if (client->answered == step->count || (client->answered == client->asked && isOver()))
            nextStep(client);
        else if (!isOver())
            ask(client);
    }
    return take;
}

static size_t gotList(struct client *client, const char *data, size_t length) {
    const char *at = data, *stop = data + length;
    while (at < stop) {
        if (client->isAtLineStart)
            client->isDotLine = *at == '.';
        const char *newline = memchr(at, '\n', stop - at);
        client->isAtLineStart = newline != NULL;
        if (!newline)
            return length;
        at = newline + 1;
        if (client->isDotLine) {
            struct step *step = &steps[client->step];
            client->isInBody = 0;
            if (client->bodyLines != step->count) {
                char text[64];
                snprintf(text, sizeof text, "%ld lines in place of %ld", client->bodyLines,
                         step->count);
                die(client, "wrong bytes", text, strlen(text));
            }
            nextStep(client);
            return at - data;
        }
        client->bodyLines++;
    }
    return length;
}

static void got(struct client *client, const char *data, size_t length) {
    while (length) {
        size_t took;
        if (client->isWaiting)
            die(client, "wrong bytes", data, length);
        if (client->isInBody) {
            took = steps[client->step].kind == RETR ? gotBody(client, data, length)
                                                     : gotList(client, data, length);
        } else {
            const char *newline = memchr(data, '\n', length);
            took = newline ? (size_t)(newline + 1 - data) : length;
            if (client->lineLength + took >= sizeof client->line)
                die(client, "wrong bytes", data, length);
            memcpy(client->line + client->lineLength, data, took);
            client->lineLength += took;
            client->line[client->lineLength] = 0;
            if (newline) {
                size_t lineLength = client->lineLength;
                client->lineLength = 0;
                gotStatus(client, client->line, lineLength);
            }
        }
        data += took;
        length -= took;
    }
}

static void readAll(struct client *client) {
    long turn = client->turn;
    for (;;) {
        ssize_t length = linkRead(&client->link, buffer, sizeof buffer);
        if (length == AGAIN)
            return;
        if (length <= 0) {
            /* After its reply to QUIT, a server may close without close_notify, or by a reset. */
            if (client->hasQuit && !client->lineLength)
                end(client);
            else
                die(client, "lost", "closed by the server", 20);
            return;
        }
        got(client, buffer, length);
        if (client->turn != turn || client->isDone)
            return;
        if (!client->link.ssl && length < (ssize_t)sizeof buffer)
            return;
    }
}

static void readScript(const char *path) {
    FILE *file = fopen(path, "r");
    char line[4096];
    if (!file) {
        perror(path);
        exit(2);
    }
    while (fgets(line, sizeof line, file)) {
        char *words[5] = {"", "", "", "", ""};
        int count = 0;
        line[strcspn(line, "\n")] = 0;
        for (char *rest = line, *word; count < 5 && (word = strsep(&rest, "\t"));)
            words[count++] = word;
        struct step *step = &steps[stepCount];
        int isStep = 1;
        if (!strcmp(words[0], "say")) {
            step->kind = SAY;
            snprintf(step->prefix, sizeof step->prefix, "%s", words[1]);
            snprintf(step->line, sizeof step->line, "%s", words[2]);
        } else if (!strcmp(words[0], "list")) {
            step->kind = LIST;
            step->count = atol(words[1]);
            snprintf(step->line, sizeof step->line, "%s", words[2]);
        } else if (!strcmp(words[0], "retr")) {
            step->kind = RETR;
            step->first = atol(words[1]);
            step->count = atol(words[2]);
            step->ahead = atol(words[3]);
        } else if (!strcmp(words[0], "barrier")) {
            step->kind = BARRIER;
        } else if (!strcmp(words[0], "again")) {
            step->kind = REPEAT;
            step->first = atol(words[1]);
            step->count = atol(words[2]);
        } else if (!strcmp(words[0], "quit")) {
            step->kind = QUIT;
            strcpy(step->line, "QUIT");
        } else {
            isStep = 0;
            if (!strcmp(words[0], "port"))
                port = atoi(words[1]);
            else if (!strcmp(words[0], "tls")) {
                isTLS = strcmp(words[1], "no") != 0;
                mayResume = !strcmp(words[1], "resume");
            } else if (!strcmp(words[0], "slots"))
                slots = atoi(words[1]);
            else if (!strcmp(words[0], "ramp"))
                ramp = atoi(words[1]);
            else if (!strcmp(words[0], "users")) {
                snprintf(userName, sizeof userName, "%s", words[1]);
                userCount = atol(words[2]);
            } else if (!strcmp(words[0], "sessions"))
                sessions = atol(words[1]);
            else if (!strcmp(words[0], "limit"))
                limitSeconds = atof(words[1]);
            else if (!strcmp(words[0], "pack"))
                pack = openPack(words[1]);
            else {
                fprintf(stderr, "unknown: %s\n", words[0]);
                exit(2);
            }
        }
        stepCount += isStep;
    }
    fclose(file);
}

int main(int count, char **arguments) {
    if (count != 2) {
        fprintf(stderr, "usage: load SCRIPT\n");
        return 2;
    }
    readScript(arguments[1]);
    alarm(300);
    clients = calloc(slots, sizeof *clients);
    poller = epoll_create1(EPOLL_CLOEXEC);
    context = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_options(context, SSL_OP_IGNORE_UNEXPECTED_EOF);
    SSL_CTX_set_session_cache_mode(context,
                                   SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL_STORE);
    SSL_CTX_sess_set_new_cb(context, newSession);
    goTime = now();
    goCPU = cpu();
    mark();
    startTime = now();
    live = slots;
    while (started < (ramp ? ramp : slots))
        begin(&clients[started++]);
    while (live) {
        struct epoll_event events[256];
        int some = epoll_wait(poller, events, 256, 60000);
        if (some == 0) {
            printf("lost no answer for 60 seconds\n");
            return 1;
        }
        for (int index = 0; index < some; index++) {
            struct client *client = events[index].data.ptr;
            if (!client->isBegun) {
                client->isBegun = 1;
                watch(client, EPOLL_CTL_MOD, EPOLLIN);
            } else if (events[index].events & EPOLLOUT) {
                flushOut(client);
            }
            readAll(client);
        }
        if (live && waiting == live) {
            mark();
            startTime = now();
            waiting = 0;
            for (int slot = 0; slot < slots; slot++)
                if (clients[slot].isWaiting) {
                    clients[slot].isWaiting = 0;
                    nextStep(&clients[slot]);
                }
        }
    }
    mark();
    return 0;
}
