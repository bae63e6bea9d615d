/* The limit: a POP3 server that only sends prepared octets.  This server shows how fast
   the load generator and the kernel allow a server to be.  It checks no passwords and has no states.

   usage: limit PORT TLSPORT CERTIFICATE KEY [NAME:COUNT:PACK]...

   A user whose name begins with NAME has the first COUNT messages of PACK; see wire.h. */

#define _GNU_SOURCE
#include "wire.h"
#include <signal.h>

struct mailbox {
    const char *name;
    long count;
    struct pack pack;
    char *uidl;
    size_t uidlLength;
    char stat[64];
};

struct client {
    struct link link;
    struct mailbox *mailbox;
    char in[65536];
    size_t inLength;
    const char *parts[2]; /* the octets to send: a status line and a body */
    size_t lengths[2];
    char status[64];
    int isClosing, isWatchingOut;
};

static struct mailbox mailboxes[16];
static int mailboxCount, poller;

static void say(struct client *client, const char *text) {
    client->parts[0] = text;
    client->lengths[0] = strlen(text);
}

static void answer(struct client *client, char *line) {
    struct mailbox *mailbox = client->mailbox;
    if (!strncmp(line, "USER ", 5)) {
        for (int index = 0; index < mailboxCount; index++)
            if (!strncmp(line + 5, mailboxes[index].name, strlen(mailboxes[index].name)))
                client->mailbox = &mailboxes[index];
        say(client, "+OK\r\n");
    } else if (!strncmp(line, "STAT", 4) && mailbox) {
        say(client, mailbox->stat);
    } else if (!strncmp(line, "UIDL", 4) && mailbox) {
        say(client, "+OK\r\n");
        client->parts[1] = mailbox->uidl;
        client->lengths[1] = mailbox->uidlLength;
    } else if (!strncmp(line, "RETR ", 5) && mailbox) {
        long number = atol(line + 5) - 1;
        if (number < 0 || number >= mailbox->count) {
            say(client, "-ERR\r\n");
            return;
        }
        say(client, "+OK\r\n");
        client->parts[1] = mailbox->pack.data + mailbox->pack.at[number];
        client->lengths[1] = mailbox->pack.at[number + 1] - mailbox->pack.at[number];
    } else if (!strncmp(line, "QUIT", 4)) {
        say(client, "+OK\r\n");
        client->isClosing = 1;
    } else {
        say(client, strncmp(line, "PASS", 4) ? "-ERR\r\n" : "+OK\r\n");
    }
}

static void drop(struct client *client) {
    linkClose(&client->link);
    free(client);
}

static void watchOut(struct client *client, int isOut) {
    struct epoll_event event = {.events = isOut ? EPOLLOUT : EPOLLIN, .data.ptr = client};
    if (client->isWatchingOut != isOut)
        epoll_ctl(poller, EPOLL_CTL_MOD, client->link.fd, &event);
    client->isWatchingOut = isOut;
}

/* Write the octets to send.  Return 1 if all are written, 0 if some are left, or BROKEN. */
static int writeOut(struct client *client) {
    for (int part = 0; part < 2; part++)
        while (client->lengths[part]) {
            ssize_t sent;
            if (!part && client->lengths[1] && !client->link.ssl) {
                struct iovec both[2];
                for (int each = 0; each < 2; each++) {
                    both[each].iov_base = (void *)client->parts[each];
                    both[each].iov_len = client->lengths[each];
                }
                struct msghdr message = {.msg_iov = both, .msg_iovlen = 2};
                sent = sendmsg(client->link.fd, &message, MSG_NOSIGNAL);
                if (sent < 0)
                    sent = errno == EAGAIN ? AGAIN : BROKEN;
            } else {
                sent = linkWrite(&client->link, client->parts[part], client->lengths[part]);
            }
            if (sent == AGAIN) {
                /* During a handshake, the server may have to wait for octets of the client. */
                watchOut(client, !client->link.ssl || !SSL_want_read(client->link.ssl));
                return 0;
            }
            if (sent < 0)
                return BROKEN;
            for (int each = part; each < 2 && sent > 0; each++) {
                size_t took = client->lengths[each] < (size_t)sent ? client->lengths[each]
                                                                   : (size_t)sent;
                client->parts[each] += took;
                client->lengths[each] -= took;
                sent -= took;
            }
        }
    return 1;
}

static void serve(struct client *client) {
    for (;;) {
        int written = writeOut(client);
        if (written == BROKEN || (written && client->isClosing)) {
            drop(client);
            return;
        }
        if (!written)
            return;
        char *newline = memchr(client->in, '\n', client->inLength);
        if (newline) {
            *newline = 0;
            answer(client, client->in);
            client->inLength -= newline + 1 - client->in;
            memmove(client->in, newline + 1, client->inLength);
            continue;
        }
        watchOut(client, 0);
        ssize_t got = linkRead(&client->link, client->in + client->inLength,
                               sizeof client->in - client->inLength);
        if (got == AGAIN)
            return;
        if (got <= 0) {
            drop(client);
            return;
        }
        client->inLength += got;
    }
}

static int listenAt(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    nonBlocking(fd);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, 1024) < 0) {
        perror("limit");
        exit(1);
    }
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = fd};
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
    return fd;
}

static void prepare(struct mailbox *mailbox, char *argument) {
    mailbox->name = strsep(&argument, ":");
    mailbox->count = atol(strsep(&argument, ":"));
    mailbox->pack = openPack(argument);
    mailbox->uidl = malloc(mailbox->count * 64 + 8);
    for (long number = 1; number <= mailbox->count; number++)
        mailbox->uidlLength += sprintf(mailbox->uidl + mailbox->uidlLength,
                                       "%ld 1600%06ld.M%ldP1.bench\r\n", number, number, number);
    mailbox->uidlLength += sprintf(mailbox->uidl + mailbox->uidlLength, ".\r\n");
    snprintf(mailbox->stat, sizeof mailbox->stat, "+OK %ld %ld\r\n", mailbox->count,
             (long)mailbox->pack.at[mailbox->count]);
}

int main(int count, char **arguments) {
    if (count < 5) {
        fprintf(stderr, "usage: limit PORT TLSPORT CERTIFICATE KEY [NAME:COUNT:PACK]...\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    SSL_CTX *context = SSL_CTX_new(TLS_server_method());
    if (SSL_CTX_use_certificate_chain_file(context, arguments[3]) != 1 ||
        SSL_CTX_use_PrivateKey_file(context, arguments[4], SSL_FILETYPE_PEM) != 1) {
        ERR_print_errors_fp(stderr);
        return 1;
    }
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    for (int index = 5; index < count && mailboxCount < 16; index++)
        prepare(&mailboxes[mailboxCount++], arguments[index]);
    poller = epoll_create1(EPOLL_CLOEXEC);
    int plain = listenAt(atoi(arguments[1])), secure = listenAt(atoi(arguments[2]));
    for (;;) {
        struct epoll_event events[256];
        int some = epoll_wait(poller, events, 256, -1);
        for (int index = 0; index < some; index++) {
            /* An event has a descriptor, which is a small number, or a pointer, which is not. */
            int listener = events[index].data.u64 < 4096 ? (int)events[index].data.u64 : -1;
            if (listener < 0) {
                serve(events[index].data.ptr);
                continue;
            }
            int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
            if (fd < 0)
                continue;
            struct client *client = calloc(1, sizeof *client);
            nonBlocking(fd);
            client->link.fd = fd;
            if (listener == secure) {
                client->link.ssl = SSL_new(context);
                SSL_set_fd(client->link.ssl, fd);
                SSL_set_accept_state(client->link.ssl);
            }
            struct epoll_event event = {.events = EPOLLIN, .data.ptr = client};
            epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
            say(client, "+OK\r\n");
            if (listener == plain)
                serve(client);
        }
    }
}
