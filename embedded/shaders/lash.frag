// Lashes: hairs cut out of the body's lash strips, short on the lower lid.
in vec3 v_position;
in vec3 v_normal;
in vec3 v_rest;
out vec4 color;
uniform vec2 lash;      // length and density in [0, 1]
uniform vec3 albedo;
void main() {
    vec3 center = vec3(sign(v_rest.x) * 0.29, 7.32, 1.20);
    vec3 away = v_rest - center;
    bool upper = away.y > -0.005;
    float along = atan(abs(v_rest.x) - 0.29, away.z);
    float tip = upper ? 0.158 + 0.038 * lash.x : 0.150 + 0.012 * lash.x;
    float r = length(away);
    float hair = noise(vec3(along * 55.0 + r * (upper ? 30.0 : 12.0), upper ? 1.0 : 5.0, sign(v_rest.x)));
    float reach = (r - 0.145) / (tip - 0.145);
    if (hair < mix(upper ? 0.10 : 0.45, 0.95, clamp(reach, 0.0, 1.5)) - 0.25 * (lash.y - 0.5)) discard;
    color = vec4(to_screen(albedo * (key_color.rgb * 0.3 + ambient(vec3(0, 1, 0)))), 1.0);
}
