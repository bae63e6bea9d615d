# Fetch a message with one of two Perl clients.
#
#     perl clients.pl CLIENT MECHANISM HOST PORT AUTHORITIES USER PASSWORD CERTIFICATE
#
# The first message is written to the standard output.
use strict;
use warnings;
use Authen::SASL qw(Perl);
use Authen::SCRAM::Client;
use IO::Socket::SSL;
use MIME::Base64 qw(decode_base64 encode_base64);
use Mail::POP3Client;
use Net::POP3;

my ($client, $mechanism, $host, $port, $authorities, $user, $password, $certificate) = @ARGV;
my %tls = (
    SSL_ca_file     => $authorities,
    SSL_verify_mode => SSL_VERIFY_PEER,
    $certificate ? (SSL_cert_file => $certificate, SSL_key_file => $certificate) : (),
);

sub mailPOP3Client {
    my $socket = IO::Socket::SSL->new(PeerAddr => $host, PeerPort => $port, %tls)
        or die "no connection: $SSL_ERROR";
    my $pop = Mail::POP3Client->new(
        USER => $user, PASSWORD => $password, AUTH_MODE => $mechanism);
    $pop->Socket($socket);
    $pop->Connect() or die $pop->Message();
    print $pop->Retrieve(1);
    $pop->Close();
}

sub netPOP3 {
    my $pop = Net::POP3->new($host, Port => $port, SSL => 1, %tls) or die "no connection: $@";
    my $isIn = $mechanism eq 'PASS' ? $pop->login($user, $password)
        : $mechanism eq 'APOP' ? $pop->apop($user, $password)
        : $mechanism =~ /^SCRAM-(.*)/ ? scram($pop, $1)
        : $pop->auth(Authen::SASL->new(
            mechanism => $mechanism,
            callback => {
                user => $user,
                pass => $password,
                # This is the authorization identity, which PLAIN and CRAM-MD5 do not need.
                authname => $mechanism eq 'LOGIN' ? $user : '',
            },
        ));
    die $pop->message() unless $isIn;
    print @{$pop->get(1)};
    $pop->quit();
}

sub scram {
    my ($pop, $digest) = @_;
    my $scram = Authen::SCRAM::Client->new(
        username => $user, password => $password, digest => $digest);
    # Each step takes the server's message and returns the client's next one.
    $pop->command('AUTH', "SCRAM-$digest")->response();
    $pop->command(encode_base64($scram->first_msg(), ''))->response();
    $pop->command(encode_base64($scram->final_msg(decode_base64(($pop->message)[0])), ''))
        ->response();
    $scram->validate(decode_base64(($pop->message)[0]));
    return $pop->command('')->response() == Net::Cmd::CMD_OK;
}

$client eq 'Mail::POP3Client' ? mailPOP3Client() : netPOP3();
